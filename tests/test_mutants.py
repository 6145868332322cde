"""The list of mutants fits the code that it alters."""

from tests.conftest import ROOT


def test_every_mutant_alters_one_place_of_its_file(benchmark_scripts):
    import mutants

    found = list(mutants.read(mutants.LIST))
    assert len(found) > 400
    for mutant in found:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
        assert mutant.old != mutant.new
        assert all(
            (ROOT / f"tests/test_{name.partition(':')[0]}.py").exists() for name in mutant.tests
        )
