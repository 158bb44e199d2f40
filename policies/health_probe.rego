# Somebody asks whether it works.
package perch.rules.health_probe

import data.perch.lib

about := {
	"rule": "health-probe",
	"severity": "Medium",
	"remedy": "add a readinessProbe (healthcheck in compose, HEALTHCHECK in a Dockerfile)",
}

violation contains lib.violation(about, c.probe_path, sprintf("nobody asks whether %s works", [c.what])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.probed == false
}
