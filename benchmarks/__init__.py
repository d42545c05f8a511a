"""How fast fastgru is: asv's suites, comparisons with other libraries, ``fastgru bench``.

Stands at the top level and ships as ``fastgru.benchmarks``; `README.md` says what runs how.
"""
