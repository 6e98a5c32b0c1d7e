// Package keyring is a node's private keys on disk: its Ed25519 identity key
// and its WireGuard keys by epoch.
//
// Keys are made here and stay here. The identity key is used through Sign and
// Signer and cannot be read out; a WireGuard private key leaves only towards
// the device that needs it. A Ring prints as its public identity, whatever
// the verb. Every file holds both halves of its key, so a flipped bit is
// found and never becomes another identity.
//
// A Credential is the file of an operator who has no node.
//
// A Ring may be used by several goroutines.
package keyring
