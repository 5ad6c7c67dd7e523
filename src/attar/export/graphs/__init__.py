"""Writing a model as a graph, operation by operation, for engines that run graphs.

An architecture is written down once, against the few operations of `graph.Graph`; each engine's
format says what they are there. So codes are copied and never traced, and an engine is given the
operations that it is fast at.
"""
