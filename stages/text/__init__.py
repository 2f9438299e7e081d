"""Functions on texts: normalisation, language id, measures and the rules over them. No stage and no I/O of rows."""
