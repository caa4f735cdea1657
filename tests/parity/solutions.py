"""Small solutions of problems of MultiPL-E's HumanEval, written by hand, and what is wrong with others."""

RIGHT = {
    "js": {
        23: "  return string.length;\n}",
        53: "  return x + y;\n}",
        35: "  return Math.max(...l);\n}",
        42: "  return l.map((x) => x + 1);\n}",
        13: "  return b === 0 ? a : greatest_common_divisor(b, a % b);\n}",
        60: "  return (n * (n + 1)) / 2;\n}",
    },
    "cpp": {
        23: "    return string.size();",
        53: "    return x + y;",
        35: "    return *std::max_element(l.begin(), l.end());",
        42: "    for (auto &x : l) x++;\n    return l;",
        13: "    return b == 0 ? a : greatest_common_divisor(b, a % b);",
        60: "    return n * (n + 1) / 2;",
    },
    "rs": {
        23: "    string.len() as isize",
        53: "    x + y",
        35: "    *l.iter().max().unwrap()",
        42: "    l.iter().map(|x| x + 1).collect()",
        13: "    if b == 0 { a } else { greatest_common_divisor(b, a % b) }",
        60: "    n * (n + 1) / 2",
    },
    "lua": {
        23: "  return #string\nend",
        53: "  return x + y\nend",
        35: "  return math.max(table.unpack(l))\nend",
        42: "  local m = {}\n  for i, x in ipairs(l) do m[i] = x + 1 end\n  return m\nend",
        13: "  while b ~= 0 do a, b = b, a % b end\n  return a\nend",
        60: "  return n * (n + 1) // 2\nend",
    },
    "php": {
        23: "    return count(str_split($string));\n}",
        53: "    return $x + $y;\n}",
        35: "    return max($l);\n}",
        42: "    return array_map(fn($x) => $x + 1, $l);\n}",
        13: "    return $b == 0 ? $a : greatest_common_divisor($b, $a % $b);\n}",
        60: "    return intdiv($n * ($n + 1), 2);\n}",
    },
    "rb": {
        23: "  string.length\nend",
        53: "  x + y\nend",
        35: "  l.max\nend",
        42: "  l.map { |x| x + 1 }\nend",
        13: "  a.gcd(b)\nend",
        60: "  n * (n + 1) / 2\nend",
    },
    "pl": {
        23: "    return length($string);\n}",
        53: "    return $x + $y;\n}",
        35: "    my $m = $l->[0];\n    for (@$l) { $m = $_ if $_ > $m }\n    return $m;\n}",
        42: "    return [map { $_ + 1 } @$l];\n}",
        13: "    ($a, $b) = ($b, $a % $b) while $b;\n    return $a;\n}",
        60: "    return $n * ($n + 1) / 2;\n}",
    },
    "sh": {
        23: '    echo "${#1}"',
        53: "    echo $(($1 + $2))",
        35: "    echo $1 | tr ' ' '\\n' | sort -n | tail -1",
        42: '    for x in $1; do printf "%d " $((x + 1)); done | sed "s/ $//"',
        13: "    local a=$1 b=$2 t\n    while ((b)); do t=$b; b=$((a % b)); a=$t; done\n    echo $a",
        60: "    echo $(($1 * ($1 + 1) / 2))",
    },
    "go": {
        23: "    return len(myString)\n}\n",
        53: "    return x + y\n}\n",
        35: "    m := l[0]\n    for _, x := range l {\n        if x > m { m = x }\n    }\n    return m\n}\n",
        13: "    for b != 0 {\n        a, b = b, a%b\n    }\n    return a\n}\n",
        60: "    return n * (n + 1) / 2\n}\n",
    },
}
RIGHT["ts"] = RIGHT["js"]

WRONG = {
    "js": "  return 1;\n}",
    "ts": "  return null;\n}",
    "cpp": "    return {};",
    "rs": "    Default::default()",
    "lua": "  return 1\nend",
    "php": "    return 1;\n}",
    "rb": "  1\nend",
    "pl": "    return 1;\n}",
    "sh": "    echo 1",
    "go": "    return 1\n}\n",
}
"""An answer that is none, of the type that is asked for where the language has types."""

LOOP = {
    "js": "  while (true) {}\n}",
    "cpp": "    volatile int x = 0;\n    while (true) { x++; }",
    "rs": "    loop { std::thread::yield_now(); }",
    "lua": "  while true do end\nend",
    "sh": "    while true; do :; done",
}
UNFINISHED = "  (((\n"
LEAVES = {
    "js": "  process.exit(0);\n}",
    "ts": "  require('node:process').exit(0);\n  return 0;\n}",
    "cpp": "    std::exit(0);",
    "rs": "    std::process::exit(0)",
    "php": "    exit(0);\n}",
    "rb": "  exit!(0)\nend",
    "pl": "    exit(0);\n}",
    "sh": "    :; }; exit 0; f() { :",
}
"""Programs that end with status 0 before a test has failed."""
