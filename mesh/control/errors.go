package control

import (
	"errors"
	"fmt"
	"net/http"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

var (
	// ErrEnrolled: the state directory belongs to a mesh already.
	ErrEnrolled = errors.New("this machine is in a mesh already; leave it first: meshctl leave")
	// ErrNotEnrolled: the state directory belongs to no mesh.
	ErrNotEnrolled = errors.New("this machine is in no mesh; make one (meshctl init) or join one (meshctl join TOKEN)")
	// ErrMayBeMember: nobody knows whether the mesh has admitted this machine. Who
	// joins again with the same token and the same identity gets what it was given.
	ErrMayBeMember = errors.New("the mesh may have admitted this machine, but its answer is lost")
	// ErrRemoved: the mesh has removed or revoked this node.
	ErrRemoved = errors.New("this node was removed from the mesh; to come back, empty the state directory and join with a new token")
	// ErrLeft: this node has left by its own wish.
	ErrLeft = errors.New("this node has left the mesh")
	// ErrUntrusted: who answered does not hold the key that was expected.
	ErrUntrusted = transport.ErrUntrusted
	// ErrNoVoter: no voter answered, so nothing can be changed now.
	ErrNoVoter = errors.New("no voter of the mesh answers; traffic goes on, but changes need a majority of the voters up and reachable")
)

// Codes of errors that do not come from store.
const (
	CodeNoCertificate = "certificate-needed"
	CodeExpired       = "certificate-expired"
	CodeRemoved       = "removed"
	CodeBanned        = "banned" // by an operator's word; the log does not have it yet
	CodeUnknownNode   = "unknown-node"
	CodeNotVoter      = "not-a-voter"
	CodeNotLeader     = "not-leader"
	CodeBehind        = "behind"    // the voter has not what the follower has
	CodeDiverged      = "diverged"  // the voter has another history than the follower
	CodeUnreached     = "unreached" // no voter has a way to a member
	CodeBusy          = "busy"
	CodeMalformed     = "malformed"
	CodeInternal      = "internal"
)

// An Error is what the node API answers in place of a result: a stable code
// for programs and a sentence for people.
type Error struct {
	Status  int         `json:"-"` // HTTP
	Code    string      `json:"code"`
	Message string      `json:"message"`
	Leader  mesh.NodeID `json:"leader,omitzero"` // CodeNotLeader: who leads, if known
}

// Error implements error with the sentence.
func (e *Error) Error() string { return e.Message }

func newError(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// answerTo turns any error into what may be sent to another node.
func answerTo(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*store.Refusal](err); ok {
		return newError(http.StatusForbidden, r.Code, "%s", r.Message)
	}
	return newError(http.StatusServiceUnavailable, CodeInternal, "%s", err)
}

func hasCode(err error, code string) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == code
}
