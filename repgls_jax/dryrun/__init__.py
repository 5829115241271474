"""What a run would take, from the compiler alone: memory, collectives, arithmetic and time, without data or chips."""
