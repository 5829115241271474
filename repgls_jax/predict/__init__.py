"""Prediction for films of one's own: files in, a table of probability, rate and call for each finding out."""
