"""Matrix states: what is written token by token and read by queries, and what decides where it goes.

``scan`` is the recurrence, ``fenwick`` states of levels that grow, ``evict`` a cache that gives pairs up for a state;
``route`` chooses the parts of a bank, ``mass`` and ``mixture`` weigh candidates by the keys that they hold.
"""
