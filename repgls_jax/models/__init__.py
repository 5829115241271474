"""The networks: LU-ViT (images to findings) and the RGN (report wording to rates). Linen, pure, no effects."""
