"""Every linear as two thinner ones."""
