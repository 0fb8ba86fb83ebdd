"""Networks and sampling: landmark CNN, patches at landmarks, fViT, heads, weight names."""
