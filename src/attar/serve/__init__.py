"""The HTTP server: language models, classifiers and embeddings behind one port."""
