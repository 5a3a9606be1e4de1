"""The plugin as the registry sees it."""

from jno.lora import Registry


def test_the_plugin_loads():
    records = {record.distribution: record for record in Registry().records()}
    assert records["jno-lora-e3nn"].status == "loaded"
