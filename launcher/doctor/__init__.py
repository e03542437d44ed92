"""Checks whether the nodes of a hostfile can run the cluster, and says what to mend.

`survey` asks every node at once, by a program that it sends there; `checks` judges what came back, and knows
neither clocks nor sockets; `report` shows it.
"""
