"""The production cycle: a new dump lands, and by morning there is a better encoder, or a clear reason why not.

```
 watched sources      seal          curate       train          cooldown       evaluate, promote
 folders, buckets ──► dump ──────► new images ──► plateau ─────► candidate ───► champion | held, with the reason
 deliveries.py        ledger       curating.py   training.py                   judging.py
```

`engine.run_pass` is one pass over all of it, and may be run at any time, by several at once, and after any kill: each
stage of each dump is a unit of work in the ledger, claimed with a lease and published once.
"""
