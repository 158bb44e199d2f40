# Images are signed by whom the level names, where it names somebody.
#
# Nobody can look into a registry from here. Perch does it, for the images in `wanted`, and gives what
# it found as `input.images`. Without that, as in OPA alone, this rule is not asked.
package perch.rules.image_signed

import data.perch.lib

about := {
	"rule": "image-signed",
	"severity": "High",
	"remedy": "sign the image by its digest with a key of imageSigners (cosign sign --key …), and name it by that digest",
}

is_on if {
	lib.is_on(about.rule)
	count(lib.parameters.imageSigners) > 0
}

is_asked if {
	is_on
	is_object(input.object)
	is_object(input.images)
}

# Every image that runs, with the place where it is named.
images contains {"path": c.image_path, "given": c.image, "full": lib.full_name(c.image)} if {
	some c in lib.containers
	c.image != ""
}

# The keys that may sign an image.
keys_of(full) := {signer.key |
	some signer in lib.parameters.imageSigners
	lib.is_under(full, signer.images)
}

# What to look for in registries: none but those that are allowed, and that a signer names.
wanted contains {"image": image.full, "keys": [key | some key in keys_of(image.full)]} if {
	is_on
	some image in images
	lib.from_allowed_registry(image.full)
	count(keys_of(image.full)) > 0
}

found(full) := object.get(input.images, full, {})

signed_by(full) := {key |
	some key in object.get(found(full), "signedBy", [])
	key in keys_of(full)
}

problem(full) := object.get(found(full), "problem", "")

is_pinned(image) if regex.match(`@sha256:[0-9a-f]{64}$`, image)

violation contains lib.violation(with_remedy(nobody), image.path, sprintf("nobody is named who may sign the image %s", [image.given])) if {
	is_asked
	some image in images
	count(keys_of(image.full)) == 0
}

nobody := "take an image that a signer of imageSigners answers for, or have a signer named for this one"

violation contains lib.violation(about, image.path, sprintf("whether the image %s is signed is not known: %s", [image.given, why(image.full)])) if {
	is_asked
	some image in images
	count(keys_of(image.full)) > 0
	not is_known(image.full)
}

is_known(full) if {
	input.images[full]
	problem(full) == ""
}

# What was found before is still so while a registry does not answer.
is_known(full) if count(signed_by(full)) > 0

why(full) := problem(full) if problem(full) != ""

why(full) := "nobody looked" if problem(full) == ""

violation contains lib.violation(about, image.path, sprintf("the image %s is not signed: %s", [image.given, lack(image.full)])) if {
	is_asked
	some image in images
	count(keys_of(image.full)) > 0
	is_known(image.full)
	count(signed_by(image.full)) == 0
}

count_of(full) := object.get(found(full), "signatures", 0)

lack(full) := "it has no signature" if count_of(full) == 0

lack(full) := sprintf("of its signatures (%d) none is by a key of its signers", [count_of(full)]) if count_of(full) > 0

# What is signed is a digest. Where a tag leads a moment later, nobody knows.
violation contains lib.violation(with_remedy(pin), image.path, sprintf("the image %s is named by a tag, and what is signed is a digest: the tag can be moved", [image.given])) if {
	is_asked
	some image in images
	count(signed_by(image.full)) > 0
	not is_pinned(image.given)
	pin := sprintf("name it %s@%s", [image.given, object.get(found(image.full), "digest", "sha256:…")])
}

with_remedy(text) := object.union(about, {"remedy": text})
