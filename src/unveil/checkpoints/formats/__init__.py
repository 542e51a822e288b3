"""Published formats of weights, one module each; `registry` finds them here."""
