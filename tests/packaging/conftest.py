"""The project in `outside_plugin` is tested where it is installed, by `test_separation.py`."""

collect_ignore = ["outside_plugin"]
