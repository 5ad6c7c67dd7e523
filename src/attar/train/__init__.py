"""Training: one loop for every technique that trains the whole model.

`schedule` is light, so that settings can be read without torch; `fit`, `losses` and `teacher`
import torch and are imported by their own names.
"""
