"""Operations on tensors: a kernel knows nothing of layers, configs or strategies."""
