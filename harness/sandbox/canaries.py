"""A small problem of our own in every language, with a right and a wrong solution, in the form of MultiPL-E's rows.

Both are judged before the first program of a language: a machine on which the right one fails or the wrong one passes
would give scores that say nothing of a model. The tests use what MultiPL-E's use of the language and its libraries.
The wrong one passes the first test and fails the last.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Canary:
    """A right and a wrong program, and their tests."""

    right: str
    wrong: str
    tests: str


def _canary(head: str, right: str, wrong: str, tests: str) -> Canary:
    return Canary(head + right, head + wrong, tests)


CANARIES: dict[str, Canary] = {
    "python": _canary(
        "def triple(n):\n",
        "    return 3 * n\n",
        "    return n + 4\n",
        "def check(candidate):\n    assert candidate(2) == 6\n    assert candidate(-1) == -3\n\ncheck(triple)\n",
    ),
    "cpp": _canary(
        "#include<assert.h>\n#include<bits/stdc++.h>\nlong triple(long n) {\n",
        "    return 3 * n;",
        "    return n + 4;",
        "}\nint main() {\n    auto candidate = triple;\n    assert(candidate((2)) == (6));\n"
        "    assert(candidate((-1)) == (-3));\n}\n",
    ),
    "cs": _canary(
        "using System;\nusing System.Numerics;\nusing System.Diagnostics;\nusing System.Collections.Generic;\n"
        "using System.Linq;\nusing System.Text;\nclass Problem {\n    public static List<long> Triple(long n) {\n",
        "        return new List<long> { 3 * n };",
        "        return new List<long> { n + 4 };",
        "    }\n    public static void Main(string[] args) {\n"
        "    Debug.Assert(Triple((2L)).SequenceEqual((new List<long>(new long[]{(long)6L}))));\n"
        "    Debug.Assert(Triple((-1L)).SequenceEqual((new List<long>(new long[]{(long)-3L}))));\n    }\n\n}\n",
    ),
    "go": _canary(
        'package triple_test\n\nimport (\n    "testing"\n    "fmt"\n)\n\nfunc triple(n int) int {\n',
        "    return 3 * n\n}\n",
        "    return n + 4\n}\n",
        "func TestTriple(t *testing.T) {\n  candidate := triple\n\ttype test struct {\n\t\tactual   interface{}\n"
        "\t\texpected interface{}\n\t}\n   tests := []test{\n     { actual: candidate(2), expected: 6 },\n"
        "     { actual: candidate(-1), expected: -3 },\n   }\n\n\tfor i, tc := range tests {\n"
        '\t\tt.Run(fmt.Sprintf("test num % d", i), func(t *testing.T) {\n'
        '\t\t\tif fmt.Sprintf("%v", tc.actual) != fmt.Sprintf("%v", tc.expected) {\n'
        "\t\t\t\tt.Errorf(\"expected '%s', got '%s'\", tc.expected, tc.actual)\n\t\t\t}\n\t\t})\n\t}\n}\n",
    ),
    "java": _canary(
        "import java.util.*;\nimport org.javatuples.*;\nimport java.util.stream.*;\nclass Problem {\n"
        "    public static Pair<Long, Long> triple(long n) {\n",
        "        return Pair.with(n, 3 * n);\n",
        "        return Pair.with(n, n + 4);\n",
        "    }\n    public static void main(String[] args) {\n"
        "    assert(triple((2l)).equals((Pair.with(2l, 6l))));\n"
        "    assert(triple((-1l)).equals((Pair.with(-1l, -3l))));\n    }\n\n}\n",
    ),
    "js": _canary(
        "function triple(n){\n",
        "  return [3 * n];\n}\n",
        "  return [n + 4];\n}\n",
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = triple;\n"
        "  assert.deepEqual(candidate(2),[6]);\n  assert.deepEqual(candidate(-1),[-3]);\n}\n\ntest();",
    ),
    "lua": _canary(
        "local function triple(n)\n",
        "  return {3 * n}\nend\n",
        "  return {n + 4}\nend\n",
        "lu = require('luaunit')\n\nfunction test_humaneval()\nlocal candidate = triple\n"
        "    lu.assertEquals(candidate(2), {6})\n    lu.assertEquals(candidate(-1), {-3})\nend\n\n"
        "os.exit(lu.LuaUnit.run())",
    ),
    "php": _canary(
        "<?php\nfunction triple($n) {\n",
        "    return array(3 * $n);\n}\n",
        "    return array($n + 4);\n}\n",
        "function candidate(...$args) {\n    return triple(...$args);\n}\n\nfunction test(): void {\n"
        '    if (candidate(2) !== array(6)) { throw new Exception("Test failed!"); }\n'
        '    if (candidate(-1) !== array(-3)) { throw new Exception("Test failed!"); }\n}\n\ntest();',
    ),
    "pl": _canary(
        "sub triple {\n    my($n) = @_;\n",
        "    return [3 * $n];\n}\n",
        "    return [$n + 4];\n}\n",
        "use Test::Deep;\n\n\nsub testhumaneval {\n    my $candidate = \\&triple;\n"
        '        if(eq_deeply($candidate->(2),[6])) {\n        print "ok!" }else{\n        exit 1;\n        }\n'
        '        if(eq_deeply($candidate->(-1),[-3])) {\n        print "ok!" }else{\n        exit 1;\n        }\n'
        "}\n\ntesthumaneval();",
    ),
    "r": _canary(
        "triple <- function(n) {\n",
        "  return(c(3 * n))\n}\n",
        "  return(c(n + 4))\n}\n",
        "test_humaneval <- function() {\n    candidate <- triple\n"
        "    if(!identical(candidate(2), c(6))){quit('no', 1)}\n"
        "    if(!identical(candidate(-1), c(-3))){quit('no', 1)}\n}\ntest_humaneval()",
    ),
    "rb": _canary(
        "def triple(n)\n",
        "  [3 * n]\nend\n",
        "  [n + 4]\nend\n",
        "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n  def test_triple\n"
        "    candidate = method(:triple)\n    assert_equal([6], candidate.call(2))\n"
        "    assert_equal([-3], candidate.call(-1))\n  end\nend\n",
    ),
    "rs": _canary(
        "fn triple(n: isize) -> Vec<isize> {\n",
        "    vec![3 * n]\n",
        "    vec![n + 4]\n",
        "}\n\nfn main() {\n    let candidate = triple;\n    assert_eq!(candidate(2), vec![6]);\n"
        "    assert_eq!(candidate(-1), vec![-3]);\n}\n",
    ),
    "sh": _canary(
        "#!/bin/bash\ntriple() {\n",
        '    while read -r n; do echo $((3 * n)); done < <(echo "$1")\n',
        '    while read -r n; do echo $((n + 4)); done < <(echo "$1")\n',
        '}\n\ncandidate() {\n    triple "$@"\n}\n\nset -e\nrun_test() {\n'
        '    [[ $(candidate "2") = "6" ]]\n    [[ $(candidate "-1") = "-3" ]]\n}\n\nrun_test',
    ),
    "ts": _canary(
        "function triple(n: number): number[] {\n",
        "  return [3 * n];\n}\n",
        "  return [n + 4];\n}\n",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n"
        "  let candidate = triple;\n  assert.deepEqual(candidate(2),[6]);\n  assert.deepEqual(candidate(-1),[-3]);\n}\n"
        "\ntest();",
    ),
}
"""By language. Those of Java and Bash also use javatuples and process substitution, which some solutions need."""
