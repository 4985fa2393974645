"""How good predictions are: confusion matrices and every score that follows from them."""
