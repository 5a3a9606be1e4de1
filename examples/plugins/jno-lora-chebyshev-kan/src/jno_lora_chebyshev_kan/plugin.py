"""jno-lora imports this to find the adapters of this package. Keep it tiny."""

from jno.lora import hookimpl

jno_lora_api = 1
jno_lora_cases = "jno_lora_chebyshev_kan.cases:CASES"  # for `jno-lora check`


@hookimpl
def jno_lora_wrappers():
    import jno_lora_chebyshev_kan
    from jno_lora_zoo import adapters_defined_in

    return adapters_defined_in(jno_lora_chebyshev_kan)
