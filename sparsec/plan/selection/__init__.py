"""Selection: top-k over scores that are never stored, lists that all queries share, and what trains a selector.

``select`` claims a choice per query with its chain of scores, ``shared`` lists for all queries, ``signal`` the distance
between the scores and the attention that their choice got.
"""
