"""Running: plans cases, runs them in worker processes, keeps a journal, times what is to be timed."""
