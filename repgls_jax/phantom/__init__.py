"""A procedural chest X-ray data set with known truth: films, lesion masks, readers' beliefs and their reports."""

from repgls_jax.phantom.config import PhantomConfig as PhantomConfig
from repgls_jax.phantom.study import generate as generate
from repgls_jax.phantom.study import render as render
from repgls_jax.phantom.study import split_of as split_of
from repgls_jax.phantom.study import studies as studies
