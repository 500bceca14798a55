"""The page that tells a person what a search was asked, what it found, and how sure that is.

`live.py` writes it while a search goes on, `python -m genetic_algorithm.report RUN` writes it again from what lies in
the folder of the run. What is shown is a function of three documents: the configuration, the result (or, before there
is one, what the result would be now) and `report.json`, for which `data.py` reads the search.
"""
