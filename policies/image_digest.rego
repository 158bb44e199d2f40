# What was checked is what runs: an image by its digest.
package perch.rules.image_digest

import data.perch.lib

about := {
	"rule": "image-digest",
	"severity": "Medium",
	"remedy": "name the image with its digest, as in registry.example.com/team/name:1.2.3@sha256:…",
}

violation contains lib.violation(about, c.image_path, sprintf("the image %s is named by a tag, which can be moved", [c.image])) if {
	lib.is_on(about.rule)
	some c in lib.containers
	c.image != ""
	not regex.match(`@sha256:[0-9a-f]{64}$`, c.image)
}
