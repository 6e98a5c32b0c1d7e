// Package truth tests what the replicated log promises on real processes: meshd
// on every voter of a lab, clients beside them, and faults from a seed. An
// oracle outside the nodes judges them: while the mesh lives, by what it shows
// to everybody, every few seconds (look); and each time after all was killed, by
// the logs and audit files that the voters left (judge).
//
// Who judges which invariant of shared/reference/reliability.md 8.3; those of
// the data plane alone (I1, I2, I10 to I12, I14, I15) are judged elsewhere.
//
//	I3   one owner, no address twice: oracle.holds while it lives; extend and
//	     owners, over the whole log, and judge, that both say the same
//	I4   no acknowledged write lost: oracle.see (every later linearizable read
//	     has it) and remembered (so has the audit trail) while it lives;
//	     acknowledged (so has the log). The state that a node shows never goes
//	     back: oracle.see; only a voter that was killed may learn anew from the
//	     others how much of its log is committed
//	I5   linearizable: linearizable, by porcupine; one history, without gaps and
//	     in order, for every follower and voter: oracle.claim while it lives;
//	     judge and agrees
//	I6   a revoked node is heard nowhere soon after: TestB10RevokedUnderTraffic
//	I7   the data plane needs no voters: TestI07VotersGone
//	I8   secrets stay inside: canaries, at the end of each mesh, in all files
//	     that its nodes wrote (logs at debug level, and what crashes left, among
//	     them) and all packets on a router; TestB05Canary in answers of the API
//	I9   bounded resources: oracle.measure, as bounds: a mesh is killed too often
//	     for slopes to mean anything
//	I13  one leader a term: oracle.see. That writes come back: every client reads
//	     at the end, and settled; how soon is measured by the benchmarks
package truth
