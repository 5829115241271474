"""Where a LU-ViT looks: maps for each finding, drawn over films and scored against lesions.

observe  one forward pass with its tokens and attention at hand
maps     Grad-CAM, attention of the finding queries, rollout: pure, jitted, batched
scores   pointing game, overlap and energy against masks: pure, jitted, batched
regions  masks of a build, their means, and the controls
summary  scores of many films as a table with intervals over patients
overlays a map over its film, and sheets of them
explain  all of it for a checkpoint and a build
"""
