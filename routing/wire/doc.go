// Package wire is the encoding of what neighbours say to each other inside a
// tunnel: probes, link-state announcements and their acknowledgements.
//
// It is pure. Every value has exactly one encoding and decoding refuses every
// other (unsorted, duplicate, trailing, non-minimal), so a signature over the
// bytes is a signature over the meaning. Numbers are big-endian. Decoders are
// bounded, never panic and never keep a reference to their input.
package wire
