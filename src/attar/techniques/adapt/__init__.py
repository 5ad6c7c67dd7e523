"""Fitting a model to labelled data."""
