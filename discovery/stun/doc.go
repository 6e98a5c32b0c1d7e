// Package stun speaks STUN (RFC 8489) over UDP, by pion/stun: a server that
// tells members how it sees them, and sockets that ask such servers and check
// paths to a peer before WireGuard takes over their port.
//
// Every message that is acted upon carries MESSAGE-INTEGRITY: on a server with
// a key of the mesh, in a check with the credentials of the attempt. Nothing
// else is answered, and no answer is longer than its request, so neither
// servers nor checks amplify.
package stun
