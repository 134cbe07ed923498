"""The protocols: one file each, which ends in its registration; the file's name is the command's.

To add one, write a file and its test, then run ``python tools/protocol_list.py``: ``upfeat eval``,
the tables, the report and the ranks take everything else from the registration.
"""
