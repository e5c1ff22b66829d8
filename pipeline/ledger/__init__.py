"""The ledger: which dumps came, who works on them, what was trained on them, and which checkpoint is the champion.

```python
ledger = Ledger.open()                          # database.py
with ledger.writing() as connection:            # one transaction
    lease = claim(connection, work_id, owner)   # work.py; None: somebody else is at it
...                                             # the work itself, with a heartbeat now and then
with ledger.writing() as connection:
    publish(connection, lease, output)          # LeaseLost undoes all of the transaction
    move(connection, dump_id, "sealed", "verified")  # dumps.py
```
"""
