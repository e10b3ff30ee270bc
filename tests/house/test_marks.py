"""A test that takes the fixture `variant` says by a mark which operators it has to serve."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

# What stands above a test -> what its collection says, None where it is collected.
MARKS = {
    "": 'takes the fixture `variant` and has no @pytest.mark.operator("...")',
    "@pytest.mark.operator()": "operators are (), want some of soft_target, blend,",
    '@pytest.mark.operator("blend", "mixture")': "operators are ('blend', 'mixture'), want some of",
    '@pytest.mark.operator("isda", form_from="sort")': "form_from is 'sort', want a parameter of the test",
    '@pytest.mark.operator("isda", form="diag", form_from="kind")': "form and form_from exclude each other",
    '@pytest.mark.operator("isda", kind="diag")': "unexpected keyword argument 'kind'",
    '@pytest.mark.operator("isda", form_from="kind")': None, '@pytest.mark.operator("isda", form="diag")': None,
    '@pytest.mark.operator("plan")': None}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The output of a pytest of its own that collects a file for each mark."""
    folder = tmp_path_factory.mktemp("marks")
    for i, mark in enumerate(MARKS):
        (folder / f"test_{i}.py").write_text("import pytest\n\n@pytest.fixture\ndef namespace(operators):\n    pass\n\n"
                                             f'@pytest.mark.parametrize("kind", ["diag"])\n{mark}\n'
                                             "def test_it(namespace, kind):\n    pass\n")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", folder,
                           "-p", "conftest", "-p", "no:cacheprovider", "--collect-only", "-q", folder],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode != 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_that_is_missing_or_wrong_is_an_error(collected, mark):
    file, text = f"test_{list(MARKS).index(mark)}.py", MARKS[mark]
    if text is None:
        assert f"\n{file}::test_it[" in collected, collected
    else:
        said = re.search(rf"^{file}::test_it:? .*", collected, re.M)
        assert said and text in said[0], collected
