"""Figures from arrays and tables; imports neither data nor models."""
