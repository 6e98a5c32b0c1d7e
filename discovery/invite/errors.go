package invite

import "errors"

// What is wrong with a token's text. Parse wraps one of these; none of its
// errors repeats any part of the text.
var (
	// ErrNotToken is text that never was a token.
	ErrNotToken = errors.New("this is not a join token; a token is one word that begins with " + prefix)
	// ErrVersion is a token of another version of Guywire.
	ErrVersion = errors.New("this join token is of another version of Guywire; upgrade the older of the two sides, or ask for a new token")
	// ErrTruncated is a token whose end is missing.
	ErrTruncated = errors.New("this join token is cut off; paste it whole")
	// ErrChecksum is a token with a wrong character in it.
	ErrChecksum = errors.New("this join token is damaged (its checksum is wrong); copy it again")
)

// ErrProof is a proof of possession that does not hold.
var ErrProof = errors.New("the proof does not hold")

// ErrKey is a public key that proves nothing: of low order, so that anyone
// can answer for it, or a second spelling of another key.
var ErrKey = errors.New("the public key is unusable; make a new one")

// ErrAnswer is an answer that no Encode wrote.
var ErrAnswer = errors.New("the answer to the join is malformed; run the same version of Guywire on both sides")

// ErrTranscript is a transcript that no Encode wrote.
var ErrTranscript = errors.New("the join transcript is malformed")
