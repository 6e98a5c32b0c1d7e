// Package api is how meshctl, and nothing else, talks to meshd: HTTP and JSON
// on a unix socket, described by an OpenAPI document that is made from the
// same table as the server.
//
// It promises:
//   - every document has a schema number; names of fields do not change within
//     it; durations are milliseconds in fields named _ms, times are RFC 3339,
//     unknown is null;
//   - who may do what follows from the peer's credentials alone: root and the
//     daemon's own user may change things, members of group guywire may read,
//     all others get a refusal (Right);
//   - streams are newline-delimited JSON, each record with an index at which a
//     broken stream resumes;
//   - an error is a code for programs, a sentence for people and the next step
//     (Error); HTTP status and exit code follow from the code;
//   - bodies, queries, requests at a time and waiting writers are bounded.
//
// The daemon's side is Backend, which mesh/agent implements; the other side is
// Client.
package api
