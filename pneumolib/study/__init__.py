"""Studies: what is due and why (`plan`, `inputs`), its execution (`run`), and the pages (`pages`)."""
