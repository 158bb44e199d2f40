# The server's tests reach enough of it. The pipeline that tests says so in an annotation.
package perch.rules.test_coverage

import data.perch.lib

about := {
	"rule": "test-coverage",
	"severity": "Medium",
	"remedy": "test more, and record the figure: annotation policy.perch.dev/test-coverage, in percent, as in \"83.5\"",
}

field := "metadata.annotations[policy.perch.dev/test-coverage]"

is_asked if {
	lib.is_on(about.rule)
	lib.is_server
	lib.parameters.testCoverageMin > 0
	not lib.is_remote
}

given := object.get(lib.annotations, "policy.perch.dev/test-coverage", "")

is_number_text if regex.match(`^\d{1,3}(\.\d{1,6})?$`, given)

violation contains lib.violation(about, field, "the test coverage is not recorded") if {
	is_asked
	not is_number_text
}

violation contains lib.violation(about, field, sprintf("%s%% of the server is tested, %d%% are asked for", [given, lib.parameters.testCoverageMin])) if {
	is_asked
	is_number_text
	to_number(given) < lib.parameters.testCoverageMin
}
