// Package wire is the encoding of what neighbours say to each other inside a
// tunnel.
//
// There are three layers. A Message is one datagram of the probe socket: a
// Probe, a Segment of the session's byte stream, a word about silence, or a
// goodbye. A Note is one message inside the session (package session): an
// announcement, distances, or one of the session's milestones. A SignedLSA is
// one fragment of a node's link-state announcement, signed by its origin and
// carried by notes and by gossip alike.
//
// It is pure. Every value has exactly one encoding and decoding refuses every
// other (unsorted, duplicate, trailing, non-minimal), so a signature over the
// bytes is a signature over the meaning. Fixed numbers are big-endian; uvarints
// are those of encoding/binary in their shortest form. Decoders are bounded,
// never panic and never keep a reference to their input.
package wire
