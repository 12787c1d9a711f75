"""The runtime inside other people's programs.  Alone in the runtime, what is here may import their libraries."""
