"""Winning back what a lossy step lost, with the original as the teacher."""
