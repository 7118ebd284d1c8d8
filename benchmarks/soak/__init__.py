"""A thousand streams with random lives, and afterwards nothing of them may be left: ``make soak``.

``python -m benchmarks.soak --minutes 10 --seed 7`` runs real gunicorns, a scripted upstream and the clients,
each in a process of its own. Between its phases all is quiet, and everything is counted; see
:mod:`benchmarks.soak.verdict` for what. One leak is exit status 1. A report names lives by ids such as
``s12.3``; ``--seed 7 --lives s12.3`` lives those again, and no others.
"""
