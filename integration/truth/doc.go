// Package truth tests what the replicated log promises on real processes: meshd
// on every voter of a lab, clients beside them, and faults from a seed. Judges
// outside the nodes look at the clients' history (is it linearizable?), at the
// logs and audit files that the voters left, and for secrets where none may be.
package truth
