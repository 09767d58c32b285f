"""How a step is run: eagerly, or as CUDA graphs, of one process or of many."""
