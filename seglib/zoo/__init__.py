"""Parts that few people need: each is loaded when it is named."""
