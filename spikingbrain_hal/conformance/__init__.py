"""The conformance suite: what a backend really supports, with evidence.

Everything it runs derives from the declarations. ``runner.run`` does a whole run in worker processes, ``report.write``
turns the result into files; ``sbhal conformance`` is both.
"""
