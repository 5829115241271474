"""One trainer for every network and every method: state, pure step, sharding, loop, checkpoints, journal."""
