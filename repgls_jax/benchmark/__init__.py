"""The uncertainty-aware benchmark: label methods x seeds x conditions on phantoms, whose truth is known.

A seed is a hospital of its own: other patients, other readers, other reports. Films are turned into patch tokens once,
by an encoder that was trained at yet another hospital on labels of the same noisy kind; what is trained here, again and
again, is LU-ViT's read-out.

  conditions  what the hospital is like, and what is done to its labels
  arms        the methods with their tuning budgets
  hospital    studies as arrays: tokens, truth, what the reports say
  runs        one training run, compiled
  scores      one run's predictions against the truth
  verdict     paired differences with intervals
  figures, page   the results for people
  prepare, grid   files, processes and the order of the work

The first seven are pure; the last two do the effects. The command is launch/benchmark.py.
"""
